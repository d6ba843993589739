//! `afterimage rdma devices`: which RDMA devices this host has, what they can do, and which one is the default.

#[cfg(feature = "rdma")]
mod text;

use crate::exit::{Code, ExitError};

/// The version of the JSON. Fields may be added under the same number; a reader ignores those it does not know.
pub const SCHEMA: u32 = 1;

/// What the command prints, and how it ends.
#[derive(Debug)]
pub struct Report {
    /// For stdout.
    pub text: String,
    /// Whether there is a device to use.
    pub outcome: Result<(), ExitError>,
}

fn missing(message: impl std::fmt::Display, remedy: impl std::fmt::Display) -> ExitError {
    ExitError::new(Code::Prerequisite, message).remedy(remedy)
}

/// The command.
///
/// # Errors
/// [`Code::Prerequisite`]: the kernel has no RDMA, or this program was built without.
#[cfg(not(feature = "rdma"))]
pub fn devices(_json: bool) -> Result<Report, ExitError> {
    let remedy = "build it with the cargo feature `rdma`, which is a default; it needs libibverbs-dev, librdmacm-dev, \
                  libclang-dev and cmake. Or use TCP";
    Err(missing("this afterimage was built without RDMA", remedy))
}

/// The command.
///
/// # Errors
/// [`Code::Prerequisite`]: the kernel has no RDMA, or this program was built without.
#[cfg(feature = "rdma")]
pub fn devices(json: bool) -> Result<Report, ExitError> {
    use transport_rdma::device::{self, DeviceError, Wish, choose};
    let explain = |error: DeviceError| missing(&error, error.remedy());
    let devices: Vec<_> = device::devices().map_err(explain)?.into_iter().map(Device::of).collect();
    let chosen = devices.iter().any(|device| device.info.default.is_some());
    let outcome = if chosen { Ok(()) } else { choose(&Wish::default()).map(drop).map_err(explain) };
    let text = match json {
        true => json_of(&devices),
        false => text::render(&devices),
    };
    Ok(Report { text, outcome })
}

/// A device, and what was found out by trying.
#[cfg(feature = "rdma")]
#[derive(Debug, serde::Serialize)]
struct Device {
    #[serde(flatten)]
    info: transport_rdma::device::DeviceInfo,
    capabilities: Option<transport_rdma::device::probe::Capabilities>,
    /// Why nothing is known of its capabilities.
    probe_failed: Option<String>,
}

#[cfg(feature = "rdma")]
impl Device {
    fn of(info: transport_rdma::device::DeviceInfo) -> Self {
        use transport_rdma::{device::probe::capabilities_of, ffi::Context};
        let mut device = Self { info, capabilities: None, probe_failed: None };
        if device.info.trouble.is_none() {
            let opened = Context::open(&device.info.name).map_err(|error| error.to_string());
            match opened.and_then(|context| capabilities_of(&context).map_err(|error| error.to_string())) {
                Ok(capabilities) => device.capabilities = Some(capabilities),
                Err(error) => device.probe_failed = Some(error),
            }
        }
        device
    }
}

#[cfg(feature = "rdma")]
fn json_of(devices: &[Device]) -> String {
    format!("{:#}\n", serde_json::json!({ "schema": SCHEMA, "devices": devices }))
}
