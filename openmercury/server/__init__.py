"""OpenAI's and Mercury's HTTP API over the async engine; `app.create_app` builds it, `docs/server.md` describes it."""
