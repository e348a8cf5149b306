//! TCP proxying: bytes both ways between a client and an endpoint.
