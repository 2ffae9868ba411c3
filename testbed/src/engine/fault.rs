//! Faults: what the engine does wrong, how often, for how long and on which paths.
//!
//! One idea: a plan is drawn from once per request; `refuse` and `slow` are states of the whole
//! engine and are asked for instead of drawn. Everything is O(1).

use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// One way to go wrong. In JSON: `"hang_before_headers"`, `{"status": {"code": 503, "retry_after_s": 5}}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Nothing goes wrong.
    #[default]
    None,
    /// The listener is closed and open connections are reset (also the one that asked for this),
    /// until the fault ends.
    Refuse,
    /// The connection is reset once the request was read.
    ResetBeforeHeaders,
    /// The connection is reset after this many bytes of the answer's body, or at its end.
    ResetAfter {
        /// Body bytes that are still sent.
        body_bytes: u64,
    },
    /// No answer, until the client leaves.
    HangBeforeHeaders,
    /// The answer stops after this many bytes of its body, or before its end, with the connection
    /// left open.
    HangAfter {
        /// Body bytes that are still sent.
        body_bytes: u64,
    },
    /// The answer is this status in OpenAI's error shape.
    Status {
        /// Status of the answer.
        code: u16,
        /// Value of `Retry-After`; absent, no such header.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// Every step takes this many times as long. Without effect at time scale 0.
    Slow {
        /// Multiplies the duration of a step.
        factor: f64,
    },
    /// The answer starts this much later.
    SlowStart {
        /// Wait before the request is handled.
        delay_ms: u64,
    },
    /// `Content-Length` promises more bytes than follow (also on a stream).
    WrongContentLength,
    /// The answer is a 200 of this many bytes that mean nothing.
    Nonsense {
        /// Bytes of the body.
        body_bytes: u64,
    },
}

impl Fault {
    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Refuse => "refuse",
            Self::ResetBeforeHeaders => "reset_before_headers",
            Self::ResetAfter { .. } => "reset_after",
            Self::HangBeforeHeaders => "hang_before_headers",
            Self::HangAfter { .. } => "hang_after",
            Self::Status { .. } => "status",
            Self::Slow { .. } => "slow",
            Self::SlowStart { .. } => "slow_start",
            Self::WrongContentLength => "wrong_content_length",
            Self::Nonsense { .. } => "nonsense",
        }
    }

    /// Whether it concerns the whole engine instead of single requests.
    fn is_state(&self) -> bool {
        matches!(self, Self::Refuse | Self::Slow { .. })
    }
}

/// The paths a fault is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Everything that runs the model.
    #[default]
    Inference,
    /// `/health` and `/ping`.
    Health,
    /// `/metrics`.
    Metrics,
    /// Every path but `/fault`.
    All,
}

/// A fault with its limits. In JSON: `{"fault": "reset_before_headers", "requests": 3}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// What goes wrong.
    pub fault: Fault,
    /// For how many requests; absent, for all. Not for `refuse` and `slow`.
    #[serde(default)]
    pub requests: Option<u64>,
    /// Share of the requests, 0 to 1; absent, all. Not for `refuse` and `slow`.
    #[serde(default)]
    pub probability: Option<f64>,
    /// For how long from now; absent, until the next plan.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// On which paths. Not for `refuse` and `slow`.
    #[serde(default)]
    pub on: Target,
}

impl From<Fault> for FaultPlan {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            ..Self::default()
        }
    }
}

impl FaultPlan {
    /// Reads a plan from JSON: the plan object, or a fault alone.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let plan: Self = match serde_json::from_slice::<Fault>(json) {
            Ok(fault) => fault.into(),
            Err(_) => serde_json::from_slice(json).map_err(|error| error.to_string())?,
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        if self.fault.is_state() && (self.requests.is_some() || self.probability.is_some()) {
            let name = self.fault.name();
            return Err(format!(
                "{name}: requests and probability do not apply, use for_ms"
            ));
        }
        if self.probability.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err("probability: want 0 to 1".to_owned());
        }
        match self.fault {
            Fault::Slow { factor } if !(factor.is_finite() && factor > 0.0) => {
                Err("slow.factor: want more than 0".to_owned())
            }
            Fault::Status { code, .. } if !(200..=599).contains(&code) => {
                Err("status.code: want 200 to 599".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// The plan in force.
#[derive(Debug)]
pub(super) struct Faults {
    active: Mutex<Active>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Active {
    plan: FaultPlan,
    until: Option<Instant>,
    left: u64,
    dice: SmallRng,
}

impl Active {
    fn current(&self) -> Fault {
        match self.until {
            Some(until) if until <= Instant::now() => Fault::None,
            _ => self.plan.fault,
        }
    }
}

impl Faults {
    /// Starts with `plan`. The dice are the same in every run.
    pub(super) fn new(plan: FaultPlan) -> Self {
        let faults = Self {
            active: Mutex::new(Active {
                plan: FaultPlan::default(),
                until: None,
                left: 0,
                dice: SmallRng::seed_from_u64(1),
            }),
            changed: watch::Sender::new(()),
        };
        faults.set(plan);
        faults
    }

    /// Replaces the plan.
    pub(super) fn set(&self, plan: FaultPlan) {
        let mut active = self.active.lock();
        active.until = plan
            .for_ms
            .map(|ms| Instant::now() + Duration::from_millis(ms));
        active.left = plan.requests.unwrap_or(u64::MAX);
        active.plan = plan;
        drop(active);
        self.changed.send_replace(());
    }

    /// The plan in force, as it was set.
    pub(super) fn plan(&self) -> FaultPlan {
        self.active.lock().plan
    }

    /// What goes wrong with a request for `target`; never a state of the whole engine.
    pub(super) fn draw(&self, target: Option<Target>) -> Fault {
        let mut active = self.active.lock();
        let fault = active.current();
        let plan = active.plan;
        let aimed = plan.on == Target::All || target == Some(plan.on);
        if fault == Fault::None || fault.is_state() || !aimed || active.left == 0 {
            return Fault::None;
        }
        if plan
            .probability
            .is_some_and(|p| !active.dice.random_bool(p))
        {
            return Fault::None;
        }
        active.left -= 1;
        fault
    }

    /// What the duration of a step is multiplied with.
    pub(super) fn slowdown(&self) -> f64 {
        match self.active.lock().current() {
            Fault::Slow { factor } => factor,
            _ => 1.0,
        }
    }

    /// Whether connections are refused.
    pub(super) fn refuses(&self) -> bool {
        self.active.lock().current() == Fault::Refuse
    }

    /// Returns when connections are refused.
    pub(super) async fn until_refusing(&self) {
        let mut changes = self.changed.subscribe();
        while !self.refuses() {
            // The sender lives in self, so this ends only with a change.
            let _ = changes.changed().await;
        }
    }

    /// Returns when connections are taken again.
    pub(super) async fn until_open(&self) {
        let mut changes = self.changed.subscribe();
        while self.refuses() {
            let until = self.active.lock().until;
            let expiry = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expiry => {}
                _ = changes.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_from_a_fault_alone_or_with_limits() {
        assert_eq!(
            FaultPlan::parse(b"\"refuse\"").unwrap(),
            Fault::Refuse.into()
        );
        let plan = FaultPlan::parse(
            br#"{"fault":{"status":{"code":503,"retry_after_s":2}},"requests":3,"on":"all"}"#,
        )
        .unwrap();
        let fault = Fault::Status {
            code: 503,
            retry_after_s: Some(2),
        };
        assert_eq!(
            (plan.fault, plan.requests, plan.on),
            (fault, Some(3), Target::All)
        );
        for wrong in [
            &br#"{"fault":"refuse","requests":1}"#[..],
            br#"{"fault":"none","probability":2}"#,
            br#"{"fault":{"slow":{"factor":0}}}"#,
            br#"{"fault":{"status":{"code":99}}}"#,
            br#"{"fault":"nonsense"}"#,
            br#"{"fault":"none","extra":1}"#,
        ] {
            assert!(
                FaultPlan::parse(wrong).is_err(),
                "{}",
                String::from_utf8_lossy(wrong)
            );
        }
    }

    #[test]
    fn a_plan_ends_after_its_requests_and_leaves_other_paths_alone() {
        let faults = Faults::new(FaultPlan {
            requests: Some(2),
            ..Fault::HangBeforeHeaders.into()
        });
        assert_eq!(faults.draw(Some(Target::Health)), Fault::None);
        assert_eq!(faults.draw(None), Fault::None);
        let drawn: Vec<Fault> = (0..3)
            .map(|_| faults.draw(Some(Target::Inference)))
            .collect();
        assert_eq!(
            drawn,
            [
                Fault::HangBeforeHeaders,
                Fault::HangBeforeHeaders,
                Fault::None
            ]
        );
    }

    #[test]
    fn a_probability_hits_its_share() {
        let faults = Faults::new(FaultPlan {
            probability: Some(0.25),
            ..Fault::ResetBeforeHeaders.into()
        });
        let hits = (0..4000)
            .filter(|_| faults.draw(Some(Target::Inference)) != Fault::None)
            .count();
        assert!((800..1200).contains(&hits), "{hits}");
    }
}
