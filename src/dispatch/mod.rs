//! Dispatchers: requests to instances (`local`). The global one, which answers DNS, comes later.

pub mod local;
