"""Rollouts in great number, many of them bad: are those reversed, and no others?"""
