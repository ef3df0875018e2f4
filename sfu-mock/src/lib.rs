//! A mock SFU cluster over real HTTPS that injects failures.
