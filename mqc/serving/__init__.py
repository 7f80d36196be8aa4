"""A program behind the OpenAI API: requests, a queue, and sessions that keep their caches."""
