"""gRPC over HTTP/2 on an event loop's own protocol: frames, headers, connections, calls, the server."""
