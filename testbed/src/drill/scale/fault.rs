//! What breaks in a fleet.

use super::fleet::Fleet;

/// What breaks, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Fault {
    /// Redis is killed, and comes back empty.
    StoreKilled,
    /// Redis is halted: connections stay open, nothing is answered.
    StoreStalled,
    /// Everything in Redis is deleted.
    StoreFlushed,
    /// All Webdis are killed.
    FrontsKilled,
    /// One of the Envoys is killed, and comes back with nothing that it knew.
    EnvoyKilled,
}

impl Fault {
    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StoreKilled => "store_killed",
            Self::StoreStalled => "store_stalled",
            Self::StoreFlushed => "store_flushed",
            Self::FrontsKilled => "fronts_killed",
            Self::EnvoyKilled => "envoy_killed",
        }
    }

    /// Whether the store does not answer meanwhile.
    pub(super) fn blinds(self) -> bool {
        matches!(
            self,
            Self::StoreKilled | Self::StoreStalled | Self::FrontsKilled
        )
    }

    /// Whether it lasts.
    pub(super) fn lasts(self) -> bool {
        self != Self::StoreFlushed
    }

    /// Lets it begin.
    ///
    /// # Errors
    /// What is to break is broken.
    pub(super) async fn begin(self, fleet: &mut Fleet<'_>) -> anyhow::Result<()> {
        match self {
            Self::StoreKilled => fleet.store.redis.kill(),
            Self::StoreStalled => fleet.store.redis.stall(),
            Self::StoreFlushed => fleet.store.flush().await,
            Self::FrontsKilled => {
                let mut fronts = fleet.store.fronts.iter_mut();
                fronts.try_for_each(crate::store::Part::kill)
            }
            Self::EnvoyKilled => fleet.last()?.kill(),
        }
    }

    /// Puts it right; returns once what was broken serves again.
    ///
    /// # Errors
    /// It does not.
    pub(super) async fn end(self, fleet: &mut Fleet<'_>) -> anyhow::Result<()> {
        match self {
            Self::StoreKilled => fleet.store.redis.start().await,
            Self::StoreStalled => fleet.store.redis.resume(),
            Self::StoreFlushed => Ok(()),
            Self::FrontsKilled => {
                for front in &mut fleet.store.fronts {
                    front.start().await?;
                }
                Ok(())
            }
            Self::EnvoyKilled => fleet.last()?.start().await,
        }
    }
}
