//! Variables that the core and plugins give a request: APISIX's `ctx.var` assignments.

use std::sync::LazyLock;

/// What a variable is made from when somebody asks for it.
type Make = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// The variables of one request, by name.
#[derive(Debug, Default)]
pub struct Vars(Vec<(&'static str, Value)>);

#[derive(Debug)]
enum Value {
    Text(Vec<u8>),
    Lazy(LazyLock<Vec<u8>, Make>),
}

impl Vars {
    /// Whether none was set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a variable that was set.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(of, _)| *of == name).map(|(_, value)| match value {
            Value::Text(text) => text.as_slice(),
            Value::Lazy(text) => text.as_slice(),
        })
    }

    pub(super) fn set(&mut self, name: &'static str, text: Vec<u8>) {
        self.put(name, Value::Text(text));
    }

    pub(super) fn set_lazy(&mut self, name: &'static str, make: Make) {
        self.put(name, Value::Lazy(LazyLock::new(make)));
    }

    pub(super) fn append(&mut self, others: Vars) {
        others.0.into_iter().for_each(|(name, value)| self.put(name, value));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn put(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(of, _)| *of == name) {
            Some(var) => var.1 = value,
            None => self.0.push((name, value)),
        }
    }
}
