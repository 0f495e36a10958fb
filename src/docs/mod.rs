//! The documents of the project, one page per module, as they lie in `src/docs`.
//!
//! They hold what cannot be read from one file alone: the way of a request, the walls, what is
//! promised and how it is shown, and why it is built so. No code.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("wake_path.md")]
pub mod wake_path {}

#[doc = include_str!("specification.md")]
pub mod specification {}

#[doc = include_str!("errors.md")]
pub mod errors {}

#[doc = include_str!("policy.md")]
pub mod policy {}

/// Why it is built so: one page per choice that could have been another one.
pub mod decisions {
    #[doc = include_str!("decisions/0001-dependencies.md")]
    pub mod d0001_dependencies {}

    #[doc = include_str!("decisions/0002-criu-as-the-apps-user.md")]
    pub mod d0002_criu_as_the_apps_user {}

    #[doc = include_str!("decisions/0003-overlay-layers.md")]
    pub mod d0003_overlay_layers {}

    #[doc = include_str!("decisions/0004-one-atomic-per-request.md")]
    pub mod d0004_one_atomic_per_request {}

    #[doc = include_str!("decisions/0005-sockets-from-the-agent.md")]
    pub mod d0005_sockets_from_the_agent {}

    #[doc = include_str!("decisions/0006-json-over-seqpacket.md")]
    pub mod d0006_json_over_seqpacket {}

    #[doc = include_str!("decisions/0007-config-reader.md")]
    pub mod d0007_config_reader {}

    #[doc = include_str!("decisions/0008-streams-append-only.md")]
    pub mod d0008_streams_append_only {}

    #[doc = include_str!("decisions/0009-kept-state.md")]
    pub mod d0009_kept_state {}
}
