"""The API process: its routes, and the services that they use. The worker never imports this package."""
