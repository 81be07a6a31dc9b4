//! Tests of all planners together.
