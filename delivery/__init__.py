"""The closed loop in parts: preflight, baseline, latency table, rounds, publishing, report."""
