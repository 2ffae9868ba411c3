//! warmpath as Envoy sees it: callbacks in, host calls out. Every decision is made in
//! `warmpath-core`; this crate only translates.

mod calls;
mod host;
mod metrics;
mod packed;
mod rewrite;
mod root;
mod scouting;
mod status;
mod steering;
mod stream;
#[cfg(feature = "trap")]
mod trap;
mod worker;

// The macro defines the module's start function, which is nobody's API.
mod start {
    use crate::root::Root;
    use proxy_wasm::types::LogLevel;

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(Root::default()));
    }}
}
