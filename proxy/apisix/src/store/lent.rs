//! A store that another process opens, which is to take the place of this one.

/// A store whose files this process has closed, so that another one opens them. Dropping it has them opened again.
#[derive(Default)]
pub struct Lent(Option<Box<dyn FnOnce(Outcome) + Send>>);

/// What has become of it.
pub(super) enum Outcome {
    /// The other process did not take it: nothing of it has changed.
    Back,
    /// It is the other one's.
    Given,
}

impl Lent {
    /// Of a store that closes nothing.
    pub fn nothing() -> Lent {
        Lent::default()
    }

    pub(super) fn new(end: impl FnOnce(Outcome) + Send + 'static) -> Lent {
        Lent(Some(Box::new(end)))
    }

    /// Leaves the files to the other process for good. What waits to be written is refused, and was not answered before.
    pub fn give(mut self) {
        if let Some(end) = self.0.take() {
            end(Outcome::Given);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end(Outcome::Back);
        }
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "a store that is lent" } else { "nothing lent" })
    }
}
