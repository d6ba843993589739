//! Which way checkpoints and beats shall go: the same settings on both sides.

use super::{ConfigError, file::Setting, resolve::Resolver};
use clap::Args;
use node::paths::{KeepaliveWish, PathsConfig, TransportWish};

/// The flags.
#[derive(Clone, Debug, Default, Args)]
pub struct PathArgs {
    /// What carries checkpoints: rdma, tcp, or auto: RDMA where both sides have it, else TCP, saying why [default: auto]
    #[arg(long, value_name = "KIND", value_enum, hide_possible_values = true)]
    pub transport: Option<TransportWish>,
    /// What carries beats: ud (RDMA datagrams), udp, or both (suspicion only when both are silent) [default: both with
    /// --transport auto, once RDMA is in use; ud with rdma; udp with tcp]
    #[arg(long, value_name = "KIND", value_enum, hide_possible_values = true)]
    pub keepalive: Option<KeepaliveWish>,
    /// This side's UDP port for beats; 0: any that is free [default of `protect` and `probe`: 0; of `standby` and `serve`: the number
    /// of --listen, if that is free]
    #[arg(long, value_name = "PORT")]
    pub beat_port: Option<u16>,
    /// The RDMA device; `afterimage rdma devices` lists them [default: the one with the address of the connection, else the
    /// first whose port is up]
    #[arg(long, value_name = "NAME")]
    pub rdma_device: Option<String>,
    /// The entry of its GID table [default: the one with the address of the connection, else one that fits]
    #[arg(long, value_name = "N")]
    pub rdma_gid_index: Option<u8>,
    /// How long the device waits for one answer of the other side's: 4.096 us x 2^N; 8 to 22 [default: from size and rate,
    /// at least 14, which is 67 ms]
    #[arg(long, value_name = "N")]
    pub rdma_timeout: Option<u8>,
    /// How often it tries again before it gives RDMA up; 0 to 6 [default: 6]
    #[arg(long, value_name = "N")]
    pub rdma_retry: Option<u8>,
}

/// The same of a file.
#[derive(Debug)]
pub(super) struct PathSettings {
    pub(super) transport: Setting<TransportWish>,
    pub(super) keepalive: Setting<KeepaliveWish>,
    pub(super) beat_port: Setting<u16>,
    pub(super) rdma_device: Setting<String>,
    pub(super) rdma_gid_index: Setting<u8>,
    pub(super) rdma_timeout: Setting<u8>,
    pub(super) rdma_retry: Setting<u8>,
}

pub(super) fn resolve(
    r: &mut Resolver<'_>,
    args: PathArgs,
    s: PathSettings,
    staging_bytes: u64,
) -> Result<PathsConfig, ConfigError> {
    let transport = r.or("transport", args.transport, s.transport, TransportWish::Auto);
    let usual = match transport {
        TransportWish::Rdma => KeepaliveWish::Ud,
        TransportWish::Tcp => KeepaliveWish::Udp,
        TransportWish::Auto => KeepaliveWish::Both,
    };
    let keepalive = r.or("keepalive", args.keepalive, s.keepalive, usual);
    let beat_port = r.optional("beat_port", args.beat_port, s.beat_port);
    let rdma_device = r.optional("rdma_device", args.rdma_device, s.rdma_device);
    let rdma_gid_index = r.optional("rdma_gid_index", args.rdma_gid_index, s.rdma_gid_index);
    let rdma_timeout = r.optional("rdma_timeout", args.rdma_timeout, s.rdma_timeout);
    let rdma_retry = r.or("rdma_retry", args.rdma_retry, s.rdma_retry, 6);

    let (has_ud, is_tcp) = (keepalive != KeepaliveWish::Udp, transport == TransportWish::Tcp);
    r.check("keepalive", !(has_ud && is_tcp), "udp with transport = tcp: ud and both need RDMA")?;
    let only_ud = keepalive == KeepaliveWish::Ud && transport == TransportWish::Auto;
    r.check("keepalive", !only_ud, "udp or both with transport = auto, which may come down to TCP")?;
    let without = "only with transport = rdma or auto";
    r.check("rdma_device", !(is_tcp && rdma_device.is_some()), without)?;
    r.check("rdma_gid_index", !(is_tcp && rdma_gid_index.is_some()), without)?;
    r.check("rdma_timeout", rdma_timeout.is_none_or(|n| (8..=22).contains(&n)), "8 (1 ms) to 22 (17 s)")?;
    r.check("rdma_retry", rdma_retry <= 6, "0 to 6: 7 means for ever on some devices")?;
    Ok(PathsConfig {
        transport,
        keepalive,
        beat_port,
        rdma_device,
        rdma_gid_index,
        rdma_timeout,
        rdma_retry,
        staging_bytes,
    })
}
