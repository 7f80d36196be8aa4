"""The ops of the levels `llm`, `quant`, `int` and `htp`: each declared once."""
