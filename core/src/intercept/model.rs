//! Random arrivals of images beside a reader of the whole history, who forgets nothing and looks
//! everything up by going through all that ever happened.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{ListedContent, oci::Descriptor, test_time};

const IMAGES: u8 = 5;

#[derive(Clone, Debug)]
enum Step {
    /// A client asks the mirror for the image's manifest.
    Request(u8),
    Commit(u8),
    /// containerd names the image; two names of each, and one that is not mirrored.
    Name {
        image: u8,
        name: u8,
    },
    /// containerd answers the inventory, which asked for reasons of its own.
    AnswerOther {
        image: u8,
        pulled: bool,
    },
    /// containerd answers the oldest question of this machine.
    Answer {
        pulled: bool,
        fails: bool,
    },
    Wait {
        secs: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![4 => 0_u64..4, 2 => Just(5), 2 => 5_u64..1_000, 2 => 3_500_u64..3_700];
    prop_oneof![
        3 => (0..IMAGES).prop_map(Step::Request),
        5 => (0..IMAGES).prop_map(Step::Commit),
        8 => (0..IMAGES, 0..3_u8).prop_map(|(image, name)| Step::Name { image, name }),
        1 => (0..IMAGES, any::<bool>()).prop_map(|(image, pulled)| Step::AnswerOther { image, pulled }),
        6 => (prop::bool::weighted(0.8), prop::bool::weighted(0.1))
            .prop_map(|(pulled, fails)| Step::Answer { pulled, fails }),
        6 => wait.prop_map(|secs| Step::Wait { secs }),
    ]
}

fn digest(image: u8) -> Digest {
    Digest::sha256_of(&[image])
}

fn name(image: u8, name: u8) -> String {
    match name {
        0 => format!("registry.test/app/{image}:1"),
        1 => format!("registry.test/app/{image}@{}", digest(image)),
        _ => format!("other.test/app/{image}:1"),
    }
}

/// All that ever happened.
#[derive(Default)]
struct History {
    asked: Vec<(Instant, u8)>,
    arrived: Vec<(Instant, u8)>,
    judged: Vec<(Instant, u8)>,
    /// Named, and judged at this time.
    waiting: Vec<(Instant, u8, String)>,
    /// containerd has been asked where they came from.
    questions: Vec<(u8, String)>,
    bypassed: u64,
    in_a_row: u64,
    said: Vec<Instant>,
    expected: Vec<Event>,
}

fn within_the_hour(events: &[(Instant, u8)], now: Instant, image: u8) -> bool {
    events.iter().any(|(at, of)| *of == image && now - *at <= Duration::from_secs(3600))
}

impl History {
    fn named(&mut self, now: Instant, image: u8, name: String) {
        let in_hand = self.waiting.iter().any(|(_, waiting, _)| *waiting == image)
            || self.questions.iter().any(|(asked, _)| *asked == image);
        let is_mirrored = name.starts_with("registry.test/");
        if is_mirrored && !in_hand && !within_the_hour(&self.judged, now, image) {
            self.waiting.push((now + Duration::from_secs(5), image, name));
        }
    }

    /// Only what arrived within the last hour was pulled; what was asked for here ends the row.
    fn judge(&mut self, now: Instant) {
        for (_, image, name) in self.waiting.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
            if !within_the_hour(&self.arrived, now, image) {
                continue;
            }
            self.judged.push((now, image));
            if within_the_hour(&self.asked, now, image) {
                self.in_a_row = 0;
            } else {
                self.questions.push((image, name));
                self.expected.push(Event::Inspect { digest: digest(image) });
            }
        }
    }

    /// Without an answer the image is judged again.
    fn failed(&mut self, now: Instant, image: u8) {
        let question = self.questions.extract_if(.., |(asked, _)| *asked == image).next();
        self.waiting.extend(question.map(|(image, name)| (now + Duration::from_secs(5), image, name)));
    }

    fn answered(&mut self, now: Instant, image: u8, pulled: bool) {
        let Some(at) = self.questions.iter().position(|(asked, _)| *asked == image) else { return };
        // The same image has been named anew: what is said now may be from before its labels.
        if self.waiting.iter().any(|(_, waiting, _)| *waiting == image) {
            return;
        }
        let (_, example) = self.questions.remove(at);
        if !pulled || within_the_hour(&self.asked, now, image) {
            return;
        }
        self.bypassed += 1;
        self.in_a_row += 1;
        let quiet = self.said.last().is_none_or(|said| now - *said >= Duration::from_secs(3600));
        if self.in_a_row >= 3 && quiet {
            self.said.push(now);
            let notice = Notice::MirrorBypassed { images: self.in_a_row, example };
            self.expected.push(Event::Notice(notice));
        }
    }
}

fn inspection(image: u8, pulled: bool) -> Inspection {
    let sources =
        if pulled { vec![("registry.test".to_owned(), format!("app/{image}"))] } else { Vec::new() };
    Inspection::Present(ListedContent { digest: digest(image), size: 1, sources })
}

proptest! {
    #[test]
    fn bypasses_are_those_that_the_whole_history_shows(steps in vec(step(), 1..120)) {
        let filters = Filters::new(&["https://registry.test".to_owned()], &[]).expect("a registry");
        let mut intercept = Intercept::new(filters);
        let mut history = History::default();
        let mut now = test_time::start();
        for step in steps {
            match step {
                Step::Request(image) => {
                    intercept.on_requested(now, digest(image));
                    history.asked.push((now, image));
                }
                Step::Commit(image) => {
                    intercept.on_blob_committed(now, digest(image));
                    history.arrived.push((now, image));
                }
                Step::Name { image, name: which } => {
                    let target = Descriptor { media_type: String::new(), digest: digest(image), size: 1 };
                    let listed = ListedImage { name: name(image, which), target: Some(target) };
                    intercept.on_image_changed(now, &listed);
                    history.named(now, image, name(image, which));
                }
                Step::AnswerOther { image, pulled } => {
                    intercept.on_inspected(now, &digest(image), &inspection(image, pulled));
                    history.answered(now, image, pulled);
                }
                Step::Answer { pulled, fails } => {
                    let Some((image, _)) = history.questions.first().cloned() else { continue };
                    let failure = Inspection::Failed { cause: "no".to_owned() };
                    let outcome = if fails { failure } else { inspection(image, pulled) };
                    intercept.on_inspected(now, &digest(image), &outcome);
                    if fails {
                        history.failed(now, image);
                    } else {
                        history.answered(now, image, pulled);
                    }
                }
                Step::Wait { secs } => {
                    let end = now + Duration::from_secs(secs);
                    let due = history.waiting.iter().map(|(at, ..)| *at).min();
                    prop_assert_eq!(intercept.poll_timeout(), due);
                    while let Some(at) = intercept.poll_timeout().filter(|at| *at <= end) {
                        intercept.handle_timeout(at);
                        history.judge(at);
                    }
                    now = end;
                    intercept.handle_timeout(now);
                }
            }
            let events: Vec<_> = std::iter::from_fn(|| intercept.poll_event()).collect();
            prop_assert_eq!(&events, &history.expected);
            history.expected.clear();
            prop_assert_eq!(intercept.bypassed_images(), history.bypassed);
        }
    }
}
