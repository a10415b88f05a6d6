//! Tests that stop what all share. Their module's name makes them the first: each of them waits for all others to end.

mod api_server;
mod namespace;
mod operator;
mod policy;
