//! afterimage
