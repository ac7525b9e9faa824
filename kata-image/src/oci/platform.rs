//! For which machines an image is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Operating system and processor, in the words of Go: `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` for everything that runs here.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7` of `arm/v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Of this machine.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    /// Whether an image for `other` runs where this is asked for. A variant that one side leaves out is any.
    pub(crate) fn accepts(&self, other: &Self) -> bool {
        let variants = match (&self.variant, &other.variant) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.os == other.os && self.architecture == other.architecture && variants
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_left_out_is_any() {
        let arm = |variant: Option<&str>| Platform {
            os: "linux".into(),
            architecture: "arm".into(),
            variant: variant.map(str::to_owned),
        };
        assert!(arm(None).accepts(&arm(Some("v7"))));
        assert!(arm(Some("v7")).accepts(&arm(None)));
        assert!(!arm(Some("v7")).accepts(&arm(Some("v6"))));
        assert!(!Platform::host().accepts(&Platform {
            os: "windows".into(),
            ..Platform::host()
        }));
        assert_eq!(arm(Some("v7")).to_string(), "linux/arm/v7");
    }
}
