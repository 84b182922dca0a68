"""The T5 family with scanned layers."""
