"""What Millrace's tests share: clocks, databases, real servers, in-process gRPC."""
