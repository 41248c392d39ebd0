//! What people ask the core while it runs: passes a question on, and its answer back. Decides nothing; the
//! core bounds how many it takes and how long it takes for one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use spegel_core::{FoundHolders, Input, Key, Output, QuestionId};
use tokio::sync::{mpsc, oneshot};

type Waiting = BTreeMap<QuestionId, oneshot::Sender<FoundHolders>>;

/// Asks the running core; clones share the questions.
#[derive(Clone, Debug)]
pub struct Questions {
    inputs: mpsc::Sender<Input>,
    /// As many as there are questions on their way, each of which the core answers.
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
}

impl Questions {
    /// Nobody asks anything yet.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self { inputs, waiting: Arc::default(), next: Arc::default() }
    }

    /// Who has something, or `None` if the core has ended.
    pub(crate) async fn holders(&self, key: Key) -> Option<FoundHolders> {
        let question = QuestionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(question, sender);
        if self.inputs.send(Input::HoldersAsked { question, key }).await.is_err() {
            self.take(question);
            return None;
        }
        answer.await.ok()
    }

    /// Passes an answer on; `false` if the output is none.
    pub(crate) fn perform(&self, output: &Output) -> bool {
        let Output::TellHolders { question, found } = output else { return false };
        if let Some(asker) = self.take(*question) {
            // Who asked may have gone.
            let _ = asker.send(found.clone());
        }
        true
    }

    fn take(&self, question: QuestionId) -> Option<oneshot::Sender<FoundHolders>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_is_told_the_answer_to_what_was_asked() {
        let (inputs, mut core) = mpsc::channel(4);
        let questions = Questions::new(inputs);
        let ask = |text: &str| {
            let (questions, key) = (questions.clone(), Key::of(text));
            tokio::spawn(async move { questions.holders(key).await })
        };
        let (first, second) = (ask("first"), ask("second"));
        for _ in 0..2 {
            let Some(Input::HoldersAsked { question, key }) = core.recv().await else { panic!("a question") };
            let found = FoundHolders { is_held_here: key == Key::of("second"), ..FoundHolders::default() };
            let answer = Output::TellHolders { question, found };
            assert!(questions.perform(&answer));
            assert!(questions.perform(&answer), "told twice");
        }
        assert_eq!(first.await.unwrap().map(|found| found.is_held_here), Some(false));
        assert_eq!(second.await.unwrap().map(|found| found.is_held_here), Some(true));
        assert!(!questions.perform(&Output::ShutdownComplete));
        drop(core);
        assert_eq!(questions.holders(Key::of("third")).await, None);
        assert!(questions.waiting.lock().unwrap().is_empty());
    }
}
