"""Metrics of both processes: each is declared here. No other package uses prometheus_client."""
