-- One database a service: nobody reads another's tables.
CREATE DATABASE data;
CREATE DATABASE trainer;
CREATE DATABASE tuner;
CREATE DATABASE compressor;
CREATE DATABASE registry;
CREATE DATABASE gateway;
