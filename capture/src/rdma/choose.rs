//! Which engine captures: the one that was asked for, or whichever is faster on this host.

use super::{
    LocalCopy, LocalError, Options,
    measure::{Figure, MeasureError, Pattern, measure, scratch},
};
use crate::{memcpy::Memcpy, spare::WithSpare};
use mc_core::{capture::CaptureEngine, ram::SharedRam};
use std::{fmt, str::FromStr, sync::Arc};
use transport_rdma::ffi::Context;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// The processor.
    Memcpy,
    /// The device; the processor steps in if it fails.
    LocalRdma,
    /// A probe decides.
    #[default]
    Auto,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "memcpy" => Ok(Self::Memcpy),
            super::engine::NAME => Ok(Self::LocalRdma),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("no capture engine is called `{name}`: memcpy, local-rdma or auto")),
        }
    }
}

/// The engine, and how it came to be that.
#[derive(Debug)]
pub struct Choice {
    /// It.
    pub engine: Box<dyn CaptureEngine>,
    /// What the probe measured; empty without one.
    pub figures: Vec<Figure>,
    /// Why it is this one.
    pub why: Why,
}

/// Why an engine was chosen.
#[derive(Debug)]
#[non_exhaustive]
pub enum Why {
    /// It was asked for.
    Asked,
    /// There is no device to compare with.
    NoDevice,
    /// It was the faster.
    Faster,
    /// The device could not do it.
    DeviceFailed(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capture by {}: ", self.engine.name())?;
        match &self.why {
            Why::Asked => write!(f, "as asked for")?,
            Why::NoDevice => write!(f, "there is no RDMA device")?,
            Why::Faster => write!(f, "the faster here")?,
            Why::DeviceFailed(error) => write!(f, "{error}")?,
        }
        for figure in &self.figures {
            write!(f, "; {} {:.1} MB/s", figure.engine, figure.capture_mb_s())?;
        }
        Ok(())
    }
}

/// Dirty pages of the probe: 2 MiB.
const PROBE_PAGES: u32 = 512;
/// Rounds of it, after one that warms up.
const PROBE_ROUNDS: u32 = 3;
/// Bytes of its slabs.
const PROBE_SLAB: usize = 1 << 20;

/// Makes the engine for these RAM blocks. `device`: the one to use, if there is one.
///
/// # Errors
/// Only when `local-rdma` was asked for and cannot be had.
pub fn choose(
    wanted: Wanted,
    device: Option<&Arc<Context>>,
    blocks: &Arc<[SharedRam]>,
    options: &Options,
) -> Result<Choice, LocalError> {
    let memcpy = |why, figures| Choice { engine: Box::new(Memcpy::new(Arc::clone(blocks))), figures, why };
    match (wanted, device) {
        (Wanted::Memcpy, _) => Ok(memcpy(Why::Asked, Vec::new())),
        (Wanted::LocalRdma, Some(device)) => rdma(device, blocks, options, Why::Asked, Vec::new()),
        (Wanted::LocalRdma, None) => {
            let source = std::io::ErrorKind::NotFound.into();
            Err(LocalError::Device { device: "any".to_owned(), doing: "looking for an RDMA device", source })
        }
        (Wanted::Auto, None) => Ok(memcpy(Why::NoDevice, Vec::new())),
        (Wanted::Auto, Some(device)) => Ok(match probe(device, options) {
            Ok([by_memcpy, by_device]) if by_device.capture < by_memcpy.capture => {
                let figures = vec![by_memcpy, by_device];
                rdma(device, blocks, options, Why::Faster, figures.clone())
                    .unwrap_or_else(|error| memcpy(Why::DeviceFailed(Box::new(error)), figures))
            }
            Ok(figures) => memcpy(Why::Faster, figures.to_vec()),
            Err(error) => memcpy(Why::DeviceFailed(Box::new(error)), Vec::new()),
        }),
    }
}

fn rdma(
    device: &Arc<Context>,
    blocks: &Arc<[SharedRam]>,
    options: &Options,
    why: Why,
    figures: Vec<Figure>,
) -> Result<Choice, LocalError> {
    let main = Box::new(LocalCopy::new(device, blocks, options)?);
    let engine = Box::new(WithSpare::new(main, Memcpy::new(Arc::clone(blocks))));
    Ok(Choice { engine, figures, why })
}

/// Both engines on scattered pages, which is what guests dirty: memcpy's figure, then the device's.
fn probe(device: &Arc<Context>, options: &Options) -> Result<[Figure; 2], MeasureError> {
    let blocks = scratch(PROBE_PAGES)?;
    let mut by_memcpy = Memcpy::new(Arc::clone(&blocks));
    let engine_failed = |error| mc_core::capture::CaptureError::Engine {
        engine: super::engine::NAME,
        source: Box::new(error) as Box<dyn std::error::Error + Send + Sync>,
    };
    let mut by_device = LocalCopy::new(device, &blocks, options).map_err(|error: LocalError| engine_failed(error))?;
    let figure = |engine: &mut dyn CaptureEngine| {
        measure(engine, &blocks, Pattern::Scattered, PROBE_PAGES, PROBE_SLAB, PROBE_ROUNDS)
    };
    Ok([figure(&mut by_memcpy)?, figure(&mut by_device)?])
}
