//! Simulated gateways, incident plans and outside checks.
