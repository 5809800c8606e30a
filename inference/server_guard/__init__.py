"""Keys, limits, error responses and shutdown for every route. Read guard_middleware.py first."""
