//! Tests that need the whole program live in `system`, tests of the committed examples in `examples`.
