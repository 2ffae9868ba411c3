//! The decision for a request whose target and key are known: what the router is told of its prompt, and what
//! of its body changes. O(chunks of the prompt), and what the policy takes.

use super::{Exchange, Step};
use crate::answer::Answer;
use crate::decision::{Decision, Fallback};
use crate::disaggregation;
use crate::hash;
use crate::json;
use crate::router::{Ask, PromptFacts, Router, Target, completed};
use crate::scan::Field;
use crate::splice::{Change, Edit};
use crate::store::Store;

impl Exchange {
    pub(super) fn ask<'a, S: Store>(
        &self,
        router: &Router<S>,
        target: &'a Target,
        key: Option<u64>,
    ) -> Ask<'a> {
        let prompt = router
            .wants_prompt(target)
            .then(|| self.prompt(router, target))
            .flatten();
        let told = self.told.as_ref().filter(|told| told.0 == target.pool);
        let prompt = prompt.map(|prompt| PromptFacts {
            told: told.map(|told| told.1.clone()),
            ..prompt
        });
        Ask {
            target,
            key,
            prompt,
            priority: self.priority,
        }
    }

    pub(super) fn decide<S: Store>(
        &mut self,
        router: &mut Router<S>,
        target: &Target,
        key: Option<u64>,
        fallback: Option<Fallback>,
        now_us: u64,
    ) -> Step {
        if router.leaves_to_envoy(target.pool) {
            return self.leave_to_envoy(target);
        }
        if let Some(options) = router.disaggregation(target.pool) {
            let options = options.clone();
            if fallback.is_none() {
                return self.disaggregate(router, (target, key), options, now_us);
            }
            if !options.connector.decodes_alone() {
                // Its body cannot be read, or not changed.
                return Step::Answer(Answer::not_prefilled(router.pool_name(target.pool)));
            }
        }
        self.decide_alone(router, (target, key), fallback, now_us)
    }

    /// Lets Envoy's own load balancing choose among the engines of a pool, which it knows and we do not.
    fn leave_to_envoy(&mut self, target: &Target) -> Step {
        let changes = self.changes(target);
        self.scan = None;
        Step::Pass {
            pool: Some(target.pool),
            changes,
            fallback: Fallback::EndpointsUnknown,
        }
    }

    /// Decides for one engine.
    pub(super) fn decide_alone<S: Store>(
        &mut self,
        router: &mut Router<S>,
        (target, key): (&Target, Option<u64>),
        fallback: Option<Fallback>,
        now_us: u64,
    ) -> Step {
        match self.decide_now(router, (target, key), false, now_us) {
            Ok(decision) => {
                let changes = self.changes(target);
                // Nothing more is read; a long stream need not keep what was.
                self.scan = None;
                Step::Route(completed(decision, changes, fallback))
            }
            Err(answer) => Step::Answer(answer),
        }
    }

    /// Decides, and counts the request; `prefilled` says that another engine computes its prompt.
    pub(super) fn decide_now<S: Store>(
        &mut self,
        router: &mut Router<S>,
        (target, key): (&Target, Option<u64>),
        prefilled: bool,
        now_us: u64,
    ) -> Result<Decision, Answer> {
        let ask = self.ask(router, target, key);
        let (decision, charge) = router.decide_part(ask, prefilled, now_us)?;
        self.charge = Some(charge);
        let options = router.config().feedback;
        let scan = self.scan.as_deref();
        self.feedback.prepare(options, self.api, scan);
        Ok(decision)
    }

    /// What the scan tells of the prompt. Model and `cache_salt` seed its hash chain: prompts that
    /// differ in either never share a cache. Links stay in this process; the mark of the conversation
    /// means the same everywhere, so that Envoys which share nothing agree on its home.
    pub(super) fn prompt<S: Store>(
        &self,
        router: &Router<S>,
        target: &Target,
    ) -> Option<PromptFacts> {
        let scan = self.scan.as_ref()?;
        let sent = match scan.model() {
            Field::Text(model) => model,
            _ => b"",
        };
        let model = target.rename.as_deref().map_or(sent, str::as_bytes);
        let salt = scan.cache_salt().unwrap_or_default();
        let seed = hash::mix(hash::hash(model), hash::hash(salt));
        let prompt = scan.prompt();
        Some(PromptFacts {
            chain: prompt.chain(router.chain_seed(seed)).collect(),
            bytes: prompt.bytes(),
            conversation: prompt.conversation(seed),
            streamed: scan.stream(),
            output_tokens: scan.max_tokens(),
            told: None,
        })
    }

    /// What of the body is to be changed: the model's own name comes in the place of its alias, and what
    /// clients have no say in goes, if all of it was read.
    pub(super) fn changes(&self, target: &Target) -> Vec<Change> {
        let Some(scan) = &self.scan else {
            return Vec::new();
        };
        let alias = scan.model_span().zip(target.rename.as_deref());
        let rename = alias.map(|(span, name)| {
            let bytes = json::string(name).into_bytes();
            Change::At(Edit { span, bytes })
        });
        let owned = scan.is_complete() && scan.has_owned();
        let owned = owned.then(disaggregation::owned_removed);
        rename
            .into_iter()
            .chain(owned.into_iter().flatten())
            .collect()
    }
}
