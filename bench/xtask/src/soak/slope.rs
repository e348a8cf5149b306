//! How fast something grows: a line through samples by least squares.

/// The slope of the line through points (time, value), in values per time. None for fewer than three points, or when all are
/// of one time.
pub(super) fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    if samples.len() < 3 {
        return None;
    }
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, value) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let together: f64 = samples.iter().map(|(t, v)| (t - time) * (v - value)).sum();
    let apart: f64 = samples.iter().map(|(t, _)| (t - time).powi(2)).sum();
    (apart > 0.0).then(|| together / apart)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_has_its_slope_and_noise_around_it_does_not_change_it() {
        let line = |noise: f64| -> Vec<(f64, f64)> {
            let sample =
                |n: i32| (f64::from(n), 20.0 + 0.5 * f64::from(n) + noise * f64::from(n % 2 * 2 - 1));
            (0..1_000).map(sample).collect()
        };
        assert!((slope(&line(0.0)).unwrap() - 0.5).abs() < 1e-9);
        assert!((slope(&line(3.0)).unwrap() - 0.5).abs() < 1e-3);
        assert!(slope(&[(0.0, 7.0), (1.0, 7.0), (2.0, 7.0)]).unwrap().abs() < 1e-9);
    }

    #[test]
    fn too_few_samples_have_none() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
    }
}
