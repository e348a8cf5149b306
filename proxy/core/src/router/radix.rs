//! A byte trie with path compression, built once from sorted keys.
//!
//! Nodes lie in one list, the children of a node beside each other, their first bytes in a list of their own:
//! a step down is one search among those bytes and one comparison of a label.

use std::borrow::Cow;
use std::ops::Range;

/// A key of the tree and the rank of what it stands for; lower ranks go first.
pub(crate) type Entry<'a> = (Cow<'a, [u8]>, u32);

/// So many children are looked through one by one: a call would cost more.
const FEW: usize = 16;

/// The tree. Every node with candidates holds their ranks as a range of a list that the caller keeps.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// First byte of every node's label.
    firsts: Vec<u8>,
    labels: Vec<u8>,
    /// Compares without regard to ASCII case; labels are then in lower case.
    folded: bool,
}

#[derive(Debug, Default)]
struct Node {
    label: u32,
    label_len: u32,
    /// The first child; the others follow it.
    child: u32,
    children: u16,
    /// What was handed out for the node's candidates, plus one; 0 for none.
    bucket: u32,
}

/// A node that is to be given its children: the entries below it, and the length of their common part.
struct Pending {
    node: usize,
    entries: Range<usize>,
    depth: usize,
    /// What the caller said of the nodes that lead here.
    behind: usize,
}

impl Tree {
    /// Builds the tree. `bucket` is given the ranks of the entries that end at one node, ascending, and
    /// answers the number that [`Tree::walk`] will call them by; with it goes what it is to be told for the nodes below,
    /// 0 at the top.
    pub(crate) fn new(
        mut entries: Vec<Entry<'_>>,
        folded: bool,
        mut bucket: impl FnMut(&[u32], usize) -> (u32, usize),
    ) -> Tree {
        let mut tree = Tree { folded, ..Tree::default() };
        if entries.is_empty() {
            return tree;
        }
        entries.sort_unstable();
        tree.nodes.push(Node::default());
        tree.firsts.push(0);
        let mut ranks = Vec::new();
        let mut pending = vec![Pending { node: 0, entries: 0..entries.len(), depth: 0, behind: 0 }];
        while let Some(Pending { node, entries: range, depth, mut behind }) = pending.pop() {
            let below = entries.get(range.clone()).unwrap_or_default();
            // Shorter keys sort first: those that end here lead.
            let here = below.iter().take_while(|(key, _)| key.len() == depth).count();
            if here > 0 {
                ranks.clear();
                ranks.extend(below.iter().take(here).map(|(_, rank)| *rank));
                let (number, until_here) = bucket(&ranks, behind);
                tree.nodes[node].bucket = number + 1;
                behind = until_here;
            }
            tree.nodes[node].child = tree.nodes.len() as u32;
            let mut at = here;
            while let Some((first, _)) = below.get(at) {
                let byte = first.get(depth).copied().unwrap_or_default();
                let rest = below.get(at..).unwrap_or_default();
                let len = rest.partition_point(|(key, _)| key.get(depth).is_some_and(|b| *b <= byte));
                let last = rest.get(len - 1).map_or(&[][..], |(key, _)| key);
                let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
                let start = range.start + at;
                let entries = start..start + len;
                pending.push(Pending { node: tree.nodes.len(), entries, depth: common, behind });
                tree.push_node(first.get(depth..common).unwrap_or_default());
                tree.nodes[node].children += 1;
                at += len;
            }
        }
        tree.nodes.shrink_to_fit();
        tree.labels.shrink_to_fit();
        tree
    }

    fn push_node(&mut self, label: &[u8]) {
        let at = self.labels.len() as u32;
        self.labels.extend_from_slice(label);
        self.firsts.push(label.first().copied().unwrap_or_default());
        self.nodes.push(Node { label: at, label_len: label.len() as u32, ..Node::default() });
    }

    /// Visits the nodes whose keys `path` begins with, shortest first: the number of their candidates, and the
    /// length of the key.
    #[inline]
    pub(crate) fn walk(&self, path: &[u8], mut visit: impl FnMut(u32, usize)) {
        let mut at = 0;
        let mut depth = 0;
        while let Some(node) = self.nodes.get(at) {
            if node.bucket != 0 {
                visit(node.bucket - 1, depth);
            }
            let Some(&byte) = path.get(depth) else { return };
            let byte = if self.folded { byte.to_ascii_lowercase() } else { byte };
            let from = node.child as usize;
            let Some(firsts) = self.firsts.get(from..from + usize::from(node.children)) else { return };
            let child = if firsts.len() <= FEW {
                firsts.iter().position(|b| *b == byte)
            } else {
                memchr::memchr(byte, firsts)
            };
            let Some(child) = child else { return };
            at = from + child;
            let Some(next) = self.nodes.get(at) else { return };
            let (label, len) = (next.label as usize, next.label_len as usize);
            // The first byte is known to be equal, and most labels have no other.
            if len > 1 {
                let Some(label) = self.labels.get(label..label + len) else { return };
                match path.get(depth..depth + len) {
                    Some(part) if part == label || (self.folded && part.eq_ignore_ascii_case(label)) => {}
                    _ => return,
                }
            }
            depth += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_key_that_the_path_begins_with() {
        let keys = ["", "/", "/a", "/ab", "/abc/d", "/abd", "/b", "/a"];
        for folded in [false, true] {
            let entries =
                keys.iter().enumerate().map(|(i, k)| (Cow::Borrowed(k.as_bytes()), i as u32)).collect();
            let mut buckets = Vec::new();
            let tree = Tree::new(entries, folded, |ranks, _| {
                buckets.push(ranks.to_vec());
                (buckets.len() as u32 - 1, 0)
            });
            for path in ["/abc/d/e", "/abd", "/A", "", "x", "/b", "/abc"] {
                let path = if folded { path.to_owned() } else { path.to_ascii_lowercase() };
                let mut met = Vec::new();
                tree.walk(path.as_bytes(), |bucket, depth| {
                    for rank in &buckets[bucket as usize] {
                        assert_eq!(depth, keys[*rank as usize].len());
                        met.push(*rank);
                    }
                });
                met.sort_unstable();
                let lower = path.to_ascii_lowercase();
                let want: Vec<u32> =
                    (0..keys.len() as u32).filter(|i| lower.starts_with(keys[*i as usize])).collect();
                assert_eq!(met, want, "{path}");
            }
        }
    }
}
