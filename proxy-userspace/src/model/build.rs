//! Builders for API objects, so that a test shows only what matters to it.
//!
//! ```text
//! service("shop/web").cluster_ip("10.96.0.10").port(80)
//! slice("shop/web").port(8080).endpoint("10.1.0.1").endpoint("10.1.0.2")
//! ```
