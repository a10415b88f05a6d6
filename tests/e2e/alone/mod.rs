//! Tests that stop shared components. Each runs exclusively; by the name of their module they come first.

mod api_server;
mod namespace;
mod operator;
mod policy;
