"""An HTTP server for a `Recommender` on FastAPI and uvicorn; `jaxrec serve` starts it. Needs `jaxrec[serving]`."""
