//! mc-core
