"""Keys, limits, errors and shutdown around every route. Read guard_middleware.py first."""
