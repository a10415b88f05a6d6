//! How long something did not work, computed from single requests. Pure: times come in, numbers go out.
//!
//! ```text
//! requests   ok   FAIL  FAIL   ok      ok   FAIL   ok
//! outage           [------------]            [------]
//!                  start        end          start  end
//! ```
//! An outage lasts from the start of the first failed request to the end of the next one that started after it and
//! succeeded. Requests overlap, so outages may too: what is reported is their union.

/// A span of time, in seconds since the start of the measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Span {
    pub start: f64,
    pub end: f64,
}

/// What a request says about the thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Works,
    /// It doesn't.
    Fails,
    /// Neither: e.g. a crashed request says nothing about writes being paused.
    Silent,
}

/// The outages in `requests`, which must be sorted by start; they come out sorted and disjoint. One that never ended
/// lasts until the last request's end.
pub fn outages(requests: &[(Span, Verdict)]) -> Vec<Span> {
    let last = requests.iter().map(|(span, _)| span.end).fold(0.0, f64::max);
    let (mut spans, mut since) = (Vec::new(), None);
    for (request, verdict) in requests {
        match (verdict, since) {
            (Verdict::Fails, None) => since = Some(request.start),
            (Verdict::Works, Some(start)) => {
                spans.push(Span { start, end: request.end });
                since = None;
            }
            _ => {}
        }
    }
    spans.extend(since.map(|start| Span { start, end: last }));
    union(spans)
}

/// The union of spans, sorted and disjoint.
pub fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

/// Seconds in all spans, and in the longest.
pub fn total_and_longest(spans: &[Span]) -> (f64, f64) {
    let length = |span: &Span| span.end - span.start;
    // Not `sum()`: that of nothing is -0.0, which is odd in a report.
    spans.iter().map(length).fold((0.0, 0.0), |(total, longest), length| (total + length, f64::max(longest, length)))
}

/// The `share` quantile (0 to 1) of sorted values by nearest rank; 0 if there are none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Verdict::*, *};

    fn spans(pairs: &[(f64, f64)]) -> Vec<Span> {
        pairs.iter().map(|&(start, end)| Span { start, end }).collect()
    }

    #[rstest]
    #[case::nothing(&[], &[])]
    #[case::all_well(&[(0.0, 0.1, Works), (1.0, 1.1, Works)], &[])]
    #[case::one_failure(&[(0.0, 0.1, Works), (1.0, 1.1, Fails), (2.0, 2.1, Works), (3.0, 3.1, Works)], &[(1.0, 2.1)])]
    #[case::several_in_a_row(&[(1.0, 1.1, Fails), (2.0, 2.1, Fails), (3.0, 3.1, Works)], &[(1.0, 3.1)])]
    #[case::two_outages(&[(1.0, 1.1, Fails), (2.0, 2.1, Works), (3.0, 3.1, Fails), (4.0, 4.1, Works)],
        &[(1.0, 2.1), (3.0, 4.1)])]
    #[case::never_ends(&[(1.0, 1.1, Fails), (2.0, 4.0, Fails), (3.0, 3.1, Fails)], &[(1.0, 4.0)])]
    #[case::success_begun_before_does_not_end_it(&[(0.5, 5.0, Works), (1.0, 1.1, Fails), (2.0, 2.1, Works)],
        &[(1.0, 2.1)])]
    #[case::overlapping_are_merged(&[(0.0, 0.1, Fails), (1.0, 3.0, Works), (2.0, 2.1, Fails), (2.5, 4.0, Works)],
        &[(0.0, 4.0)])]
    #[case::silent_neither_opens_nor_closes(
        &[(0.0, 0.1, Silent), (1.0, 1.1, Fails), (2.0, 2.1, Silent), (3.0, 3.1, Works)],
        &[(1.0, 3.1)])]
    fn outages_last_from_first_failure_to_next_success(
        #[case] requests: &[(f64, f64, Verdict)],
        #[case] expected: &[(f64, f64)],
    ) {
        let requests: Vec<_> = requests.iter().map(|&(start, end, verdict)| (Span { start, end }, verdict)).collect();
        assert_eq!(outages(&requests), spans(expected));
    }

    #[rstest]
    #[case::nothing(&[], &[])]
    #[case::apart(&[(2.0, 3.0), (0.0, 1.0)], &[(0.0, 1.0), (2.0, 3.0)])]
    #[case::touching(&[(0.0, 1.0), (1.0, 2.0)], &[(0.0, 2.0)])]
    #[case::inside(&[(0.0, 5.0), (1.0, 2.0)], &[(0.0, 5.0)])]
    #[case::chain(&[(0.0, 2.0), (1.0, 4.0), (3.0, 5.0), (6.0, 7.0)], &[(0.0, 5.0), (6.0, 7.0)])]
    fn union_is_sorted_and_disjoint(#[case] given: &[(f64, f64)], #[case] expected: &[(f64, f64)]) {
        assert_eq!(union(spans(given)), spans(expected));
    }

    #[rstest]
    #[case(&[], (0.0, 0.0))]
    #[case(&[(0.0, 1.0), (2.0, 5.0)], (4.0, 3.0))]
    fn total_and_longest_of_spans(#[case] given: &[(f64, f64)], #[case] expected: (f64, f64)) {
        assert_eq!(total_and_longest(&spans(given)), expected);
    }

    #[rstest]
    #[case(&[], 0.95, 0.0)]
    #[case(&[7.0], 0.95, 7.0)]
    #[case(&[1.0, 2.0, 3.0, 4.0], 0.5, 2.0)]
    #[case(&[1.0, 2.0, 3.0, 4.0], 1.0, 4.0)]
    #[case(&[1.0, 2.0, 3.0, 4.0], 0.0, 1.0)]
    fn quantiles_by_nearest_rank(#[case] sorted: &[f64], #[case] share: f64, #[case] expected: f64) {
        assert_eq!(quantile(sorted, share), expected);
    }
}
