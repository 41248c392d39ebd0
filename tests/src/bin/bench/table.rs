//! The figures as a person reads them.

/// What should be seen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Of the ratio to the reference, in the middle round.
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// Of the figure itself, in the middle round, whatever the reference does.
    MiddleAtMost(f64),
    /// Of the figure itself, in each round.
    EachAtMost(f64),
    None,
}

impl Goal {
    fn shown(self, own: &[f64], ratios: Option<&[f64]>) -> String {
        let mark = |met| if met { "met" } else { "MISSED" };
        let ratio = || ratios.map_or(f64::NAN, median);
        match self {
            Self::RatioAtMost(most) => format!("ratio <= {most:<5} {}", mark(ratio() <= most)),
            Self::RatioAtLeast(least) => format!("ratio >= {least:<5} {}", mark(ratio() >= least)),
            Self::MiddleAtMost(most) => format!("<= {most:<11} {}", mark(median(own) <= most)),
            Self::EachAtMost(most) => {
                format!("each <= {most:<6} {}", mark(own.iter().all(|own| *own <= most)))
            }
            Self::None => String::new(),
        }
    }
}

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    goal: Goal,
    own: Vec<f64>,
    /// Of the same rounds.
    reference: Option<Vec<f64>>,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// A figure that speaks for itself.
    pub(crate) fn add(&mut self, what: &str, unit: &'static str, goal: Goal, own: Vec<f64>) {
        self.rows.push(Row { what: what.to_owned(), unit, goal, own, reference: None });
    }

    /// A figure beside the reference's, of the same rounds.
    pub(crate) fn compare(
        &mut self,
        what: &str,
        unit: &'static str,
        goal: Goal,
        own: Vec<f64>,
        reference: Vec<f64>,
    ) {
        self.rows.push(Row { what: what.to_owned(), unit, goal, own, reference: Some(reference) });
    }

    pub(crate) fn print(&self) {
        let headings = ["", "spegel", "reference: nginx", "ratio", "goal"];
        println!(
            "{:<54} {:<26} {:<26} {:<22} {}",
            headings[0], headings[1], headings[2], headings[3], headings[4]
        );
        for row in &self.rows {
            let ratios = row.reference.as_ref().map(|reference| {
                row.own.iter().zip(reference).map(|(own, reference)| own / reference).collect::<Vec<_>>()
            });
            let what =
                if row.unit.is_empty() { row.what.clone() } else { format!("{}, {}", row.what, row.unit) };
            println!(
                "{what:<54} {:<26} {:<26} {:<22} {}",
                spread(&row.own),
                row.reference.as_deref().map_or_else(String::new, spread),
                ratios.as_deref().map_or_else(String::new, spread),
                row.goal.shown(&row.own, ratios.as_deref())
            );
        }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(values: &[f64]) -> f64 {
    sorted(values)[values.len() / 2]
}

/// The middle, and the ends where there are any.
fn spread(values: &[f64]) -> String {
    let all = sorted(values);
    match all.as_slice() {
        [] => String::new(),
        [only] => short(*only),
        [first, .., last] => format!("{} ({} .. {})", short(median(&all)), short(*first), short(*last)),
    }
}

/// Three digits that tell something.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
