//! What a server offers of a service.
//!
//! The generated services have every method and answer NOT_FOUND for those that are not overridden,
//! which a caller cannot tell from a container that is gone. Owns the difference.

use std::collections::HashMap;

use ttrpc::r#async::Service;

/// The services with only the named methods; a server answers UNIMPLEMENTED for every other one.
#[must_use]
pub fn offered(mut services: HashMap<String, Service>, methods: &[&str]) -> HashMap<String, Service> {
    for service in services.values_mut() {
        service
            .methods
            .retain(|path, _| methods.contains(&method_name(path)));
    }
    services
}

/// The last part of a path.
fn method_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
