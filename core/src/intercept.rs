//! Decides whether containerd really asks this mirror. An image that arrives although nobody asked
//! for its manifest here came past the mirror: a proxy in containerd's environment, no
//! `config_path`, a tool that was not told of it. Called by the dispatcher with what it hears
//! anyway; orders nothing but the question where an image came from.

#[cfg(test)]
mod model;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    Filters, Inspection, ListedImage, Notice,
    oci::{Digest, ImageName},
};

/// How long a request and the arrival of what was asked for may lie apart. Shorter and a pull from
/// a slow registry counts as a bypass; longer and a pull that was asked for an hour ago hides one.
const REQUEST_MEMORY: Duration = Duration::from_secs(3600);

/// How long after an image appeared it is asked where it came from: containerd labels content a
/// moment after it has committed it. Shorter and labels are missed; longer only delays the warning.
const LABEL_DELAY: Duration = Duration::from_secs(5);

/// Most digests remembered as asked for, and as arrived. Fewer and a node that pulls more than
/// that within [`REQUEST_MEMORY`] is warned for nothing; more only costs memory.
const DIGESTS_MAX: usize = 4096;

/// Most images waiting for [`LABEL_DELAY`]. More arrive in a moment only when a node is filled by
/// import, and those tell nothing.
const WAITING_MAX: usize = 1024;

/// Bypasses in a row that make a warning. Fewer and one image pulled by hand is an alarm; more and
/// a node that bypasses the mirror is noticed late.
const BYPASSES_MIN: u64 = 3;

/// How often the warning is repeated while images go on arriving past the mirror.
const NOTICE_INTERVAL: Duration = Duration::from_secs(3600);

/// A machine of its own, fed by the dispatcher.
#[derive(Debug)]
pub(crate) struct Intercept {
    filters: Filters,
    asked: Recent,
    arrived: Recent,
    /// Images judged already: every pull gives an image two or three names.
    judged: Recent,
    waiting: VecDeque<(Instant, Digest)>,
    /// Names of images that wait, or whose content is being inspected.
    inspected: BTreeMap<Digest, String>,
    bypassed_total: u64,
    bypassed_in_a_row: u64,
    noticed_at: Option<Instant>,
    events: VecDeque<Event>,
}

/// What the dispatcher does for this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// As [`crate::Output::Inspect`]; the answer comes back by [`Intercept::on_inspected`].
    Inspect { digest: Digest },
    /// Tell the operator.
    Notice(Notice),
}

impl Intercept {
    pub(crate) fn new(filters: Filters) -> Self {
        Self {
            filters,
            asked: Recent::default(),
            arrived: Recent::default(),
            judged: Recent::default(),
            waiting: VecDeque::new(),
            inspected: BTreeMap::new(),
            bypassed_total: 0,
            bypassed_in_a_row: 0,
            noticed_at: None,
            events: VecDeque::new(),
        }
    }

    /// A client asked the mirror for this digest.
    pub(crate) fn on_requested(&mut self, now: Instant, digest: Digest) {
        self.asked.insert(now, digest);
    }

    /// A blob was committed.
    pub(crate) fn on_blob_committed(&mut self, now: Instant, digest: Digest) {
        self.arrived.insert(now, digest);
    }

    /// containerd created or updated an image.
    pub(crate) fn on_image_changed(&mut self, now: Instant, image: &ListedImage) {
        let Some(target) = &image.target else { return };
        let Ok(name) = image.name.parse::<ImageName>() else { return };
        let tag = name.tag.as_ref().map(ToString::to_string);
        let digest = target.digest;
        // What is not mirrored need not be asked for here.
        let mirrored = self.filters.allows(&name.registry, name.repository.as_str(), tag.as_deref());
        let known = self.judged.contains(now, &digest) || self.inspected.contains_key(&digest);
        if mirrored && !known && self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((now + LABEL_DELAY, digest));
            self.inspected.insert(digest, image.name.clone());
        }
    }

    /// containerd says what it knows of a digest, to whoever asked.
    pub(crate) fn on_inspected(&mut self, now: Instant, digest: &Digest, outcome: &Inspection) {
        if self.waiting.iter().any(|(_, waiting)| waiting == digest) {
            return;
        }
        let Some(image) = self.inspected.remove(digest) else { return };
        let pulled = match outcome {
            // Only a pull says where content came from; an import does not.
            Inspection::Present(content) => !content.sources.is_empty(),
            Inspection::Absent => false,
            Inspection::Failed { .. } => {
                // containerd is being restarted, perhaps because of the very proxy.
                if self.waiting.len() < WAITING_MAX {
                    self.waiting.push_back((now + LABEL_DELAY, *digest));
                    self.inspected.insert(*digest, image);
                }
                return;
            }
        };
        if !pulled || self.asked.contains(now, digest) {
            return;
        }
        self.bypassed_total += 1;
        self.bypassed_in_a_row += 1;
        let recently = self.noticed_at.is_some_and(|at| now.saturating_duration_since(at) < NOTICE_INTERVAL);
        if self.bypassed_in_a_row >= BYPASSES_MIN && !recently {
            self.noticed_at = Some(now);
            let notice = Notice::MirrorBypassed { images: self.bypassed_in_a_row, example: image };
            self.events.push_back(Event::Notice(notice));
        }
    }

    /// Images that came past the mirror since the start.
    pub(crate) const fn bypassed_images(&self) -> u64 {
        self.bypassed_total
    }

    /// Judges images whose labels must be there by now. By then it is also known whether their
    /// content arrived with them: that news takes another way, and may come after the image's.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, digest)) = self.waiting.pop_front_if(|(at, _)| *at <= now) {
            // What was here before was not pulled.
            if !self.arrived.contains(now, &digest) {
                self.inspected.remove(&digest);
                continue;
            }
            self.judged.insert(now, digest);
            if self.asked.contains(now, &digest) {
                self.inspected.remove(&digest);
                self.bypassed_in_a_row = 0;
            } else {
                self.events.push_back(Event::Inspect { digest });
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|(at, _)| *at)
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

/// Digests of the last [`REQUEST_MEMORY`], at most [`DIGESTS_MAX`].
#[derive(Debug, Default)]
struct Recent {
    at: BTreeMap<Digest, Instant>,
    order: VecDeque<(Instant, Digest)>,
}

impl Recent {
    fn insert(&mut self, now: Instant, digest: Digest) {
        while let Some((at, oldest)) = self.order.front().copied() {
            let expired = now.saturating_duration_since(at) > REQUEST_MEMORY;
            if !expired && self.order.len() < DIGESTS_MAX {
                break;
            }
            self.order.pop_front();
            // A digest that was inserted again since is younger than its first place in the order.
            if self.at.get(&oldest) == Some(&at) {
                self.at.remove(&oldest);
            }
        }
        self.at.insert(digest, now);
        self.order.push_back((now, digest));
    }

    fn contains(&self, now: Instant, digest: &Digest) -> bool {
        self.at.get(digest).is_some_and(|at| now.saturating_duration_since(*at) <= REQUEST_MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ListedContent, oci::Descriptor, test_time::start};

    fn digest(n: u64) -> Digest {
        Digest::sha256_of(&n.to_be_bytes())
    }

    fn image(n: u64) -> ListedImage {
        let target = Descriptor { media_type: String::new(), digest: digest(n), size: 1 };
        ListedImage { name: format!("registry.test/app/{n}:1"), target: Some(target) }
    }

    fn present(n: u64, pulled: bool) -> Inspection {
        let sources =
            if pulled { vec![("registry.test".to_owned(), format!("app/{n}"))] } else { Vec::new() };
        Inspection::Present(ListedContent { digest: digest(n), size: 1, sources })
    }

    /// Image `n` appears, and containerd is asked about it when the labels must be there.
    fn arrive(intercept: &mut Intercept, now: Instant, n: u64, pulled: bool) {
        intercept.on_blob_committed(now, digest(n));
        intercept.on_image_changed(now, &image(n));
        intercept.handle_timeout(now + LABEL_DELAY);
        intercept.on_inspected(now + LABEL_DELAY, &digest(n), &present(n, pulled));
    }

    fn notices(intercept: &mut Intercept) -> usize {
        let events = std::iter::from_fn(|| intercept.poll_event());
        events.filter(|event| matches!(event, Event::Notice(_))).count()
    }

    #[test]
    fn images_pulled_past_the_mirror_are_counted_and_said_once() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        for n in 1..BYPASSES_MIN {
            arrive(&mut intercept, now, n, true);
        }
        assert_eq!(notices(&mut intercept), 0, "a few images pulled by hand are no alarm");
        for n in BYPASSES_MIN..10 {
            arrive(&mut intercept, now, n, true);
        }
        assert_eq!(notices(&mut intercept), 1);
        assert_eq!(intercept.bypassed_images(), 9);
        arrive(&mut intercept, now + NOTICE_INTERVAL, 10, true);
        assert_eq!(notices(&mut intercept), 1, "said again after an hour");
    }

    #[test]
    fn image_that_was_asked_for_here_is_no_bypass_and_ends_the_row() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        arrive(&mut intercept, now, 1, true);
        arrive(&mut intercept, now, 2, true);
        intercept.on_requested(now, digest(3));
        arrive(&mut intercept, now, 3, true);
        arrive(&mut intercept, now, 4, true);
        assert_eq!((notices(&mut intercept), intercept.bypassed_images()), (0, 3));
    }

    #[test]
    fn imported_images_and_further_names_are_no_bypass() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        for n in 0..10 {
            arrive(&mut intercept, now, n, false);
        }
        intercept.on_image_changed(now, &image(11));
        intercept.handle_timeout(now + LABEL_DELAY);
        assert_eq!(intercept.bypassed_images(), 0, "what was there before was not pulled past the mirror");
        arrive(&mut intercept, now, 12, true);
        arrive(&mut intercept, now, 12, true);
        assert_eq!(intercept.bypassed_images(), 1, "one image, two names");
    }

    #[test]
    fn what_is_not_mirrored_may_pass() {
        let filters = Filters::new(&["https://docker.io".to_owned()], &[]).expect("a registry");
        let (mut intercept, now) = (Intercept::new(filters), start());
        arrive(&mut intercept, now, 1, true);
        assert_eq!((intercept.poll_event(), intercept.bypassed_images()), (None, 0));
    }

    #[test]
    fn question_is_asked_exactly_when_labels_must_be_there() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        intercept.on_blob_committed(now, digest(1));
        intercept.on_image_changed(now, &image(1));
        assert_eq!(intercept.poll_timeout(), Some(now + LABEL_DELAY));
        // The inventory asked for reasons of its own, before there were labels.
        intercept.on_inspected(now, &digest(1), &present(1, false));
        intercept.handle_timeout(now + LABEL_DELAY - Duration::from_nanos(1));
        assert_eq!(intercept.poll_event(), None);
        intercept.handle_timeout(now + LABEL_DELAY);
        assert_eq!(intercept.poll_event(), Some(Event::Inspect { digest: digest(1) }));
        intercept.on_inspected(now + LABEL_DELAY, &digest(1), &present(1, true));
        assert_eq!(intercept.bypassed_images(), 1);
    }

    #[test]
    fn image_is_judged_later_when_containerd_could_not_be_asked() {
        let (mut intercept, mut now) = (Intercept::new(Filters::default()), start());
        intercept.on_blob_committed(now, digest(1));
        intercept.on_image_changed(now, &image(1));
        for _ in 0..3 {
            now += LABEL_DELAY;
            intercept.handle_timeout(now);
            assert_eq!(intercept.poll_event(), Some(Event::Inspect { digest: digest(1) }));
            let refused = Inspection::Failed { cause: "connection refused".to_owned() };
            intercept.on_inspected(now, &digest(1), &refused);
            assert_eq!(intercept.poll_timeout(), Some(now + LABEL_DELAY));
        }
        intercept.handle_timeout(now + LABEL_DELAY);
        intercept.on_inspected(now + LABEL_DELAY, &digest(1), &present(1, true));
        assert_eq!((intercept.bypassed_images(), intercept.poll_timeout()), (1, None));
        // Nobody asks for ever about what arrived long ago.
        intercept.on_blob_committed(now, digest(2));
        intercept.on_image_changed(now, &image(2));
        intercept.handle_timeout(now + REQUEST_MEMORY + LABEL_DELAY);
        assert_eq!((intercept.poll_timeout(), intercept.inspected.len()), (None, 0));
    }

    #[test]
    fn only_so_many_images_wait_whether_new_or_to_be_judged_again() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        let some = 0..WAITING_MAX as u64;
        for n in some.clone() {
            intercept.on_blob_committed(now, digest(n));
            intercept.on_image_changed(now, &image(n));
        }
        let later = now + LABEL_DELAY;
        intercept.handle_timeout(later);
        assert_eq!(intercept.waiting.len(), 0);
        // As many others, less one.
        for n in some.clone().skip(1) {
            intercept.on_image_changed(later, &image(WAITING_MAX as u64 + n));
        }
        for n in some {
            let refused = Inspection::Failed { cause: "connection refused".to_owned() };
            intercept.on_inspected(later, &digest(n), &refused);
        }
        intercept.on_image_changed(later, &image(2 * WAITING_MAX as u64));
        assert_eq!((intercept.waiting.len(), intercept.inspected.len()), (WAITING_MAX, WAITING_MAX));
    }

    #[test]
    fn image_that_is_heard_of_before_its_content_is_judged_all_the_same() {
        let (mut intercept, now) = (Intercept::new(Filters::default()), start());
        intercept.on_image_changed(now, &image(1));
        intercept.on_image_changed(now, &image(1));
        intercept.on_blob_committed(now + LABEL_DELAY / 2, digest(1));
        intercept.handle_timeout(now + LABEL_DELAY);
        assert_eq!(intercept.poll_event(), Some(Event::Inspect { digest: digest(1) }));
        intercept.on_inspected(now + LABEL_DELAY, &digest(1), &present(1, true));
        assert_eq!((intercept.poll_event(), intercept.bypassed_images()), (None, 1));
    }

    #[test]
    fn requests_are_remembered_for_an_hour_and_only_so_many() {
        let (mut recent, now) = (Recent::default(), start());
        recent.insert(now, digest(0));
        assert!(recent.contains(now + REQUEST_MEMORY, &digest(0)));
        assert!(!recent.contains(now + REQUEST_MEMORY + Duration::from_nanos(1), &digest(0)));
        for n in 0..2 * DIGESTS_MAX as u64 {
            recent.insert(now, digest(n));
        }
        assert!(recent.order.len() <= DIGESTS_MAX && recent.at.len() <= DIGESTS_MAX);
        assert!(recent.contains(now, &digest(2 * DIGESTS_MAX as u64 - 1)));

        let mut recent = Recent::default();
        recent.insert(now, digest(0));
        recent.insert(now + REQUEST_MEMORY, digest(1));
        assert!(recent.contains(now + REQUEST_MEMORY, &digest(0)), "not forgotten before its time");
        recent.insert(now + REQUEST_MEMORY + Duration::from_nanos(1), digest(2));
        assert_eq!((recent.order.len(), recent.at.len()), (2, 2), "nor kept beyond");
    }
}
