//! piko.
fn main() {}
