"""Send requests to an OpenAI-compatible server, each at most once: answers are kept in a journal.

Read endpoint_client.py first (rounds of requests, retries), then request_journal.py and request_totals.py.
"""
