//! What can be wrong with a body, told with the numbers in it.

use crate::inflate::Encoding;

/// Why a body cannot pass. Messages are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpliceError {
    /// The first byte of a message's prefix is neither 0 nor 1: not gRPC, or cut wrongly.
    #[error("message {message} begins with byte {flag}; a gRPC message begins with 0 or 1")]
    Flag {
        /// Which message.
        message: u64,
        /// The byte.
        flag: u8,
    },
    /// A message is longer than is let through; told as soon as its prefix is there.
    #[error("message {message} has {length} bytes; at most {limit} are taken")]
    TooLarge {
        /// Which message.
        message: u64,
        /// What its prefix says, in bytes.
        length: u64,
        /// The largest length that passes, in bytes.
        limit: u64,
    },
    /// A compressed message is larger than is let through once it is inflated; told when the limit is reached.
    #[error("message {message} has more than {limit} bytes once it is inflated; that many are taken")]
    TooLargeInflated {
        /// Which message.
        message: u64,
        /// The largest length that passes, in bytes.
        limit: u64,
    },
    /// With what is appended, a message would be longer than a prefix can say.
    #[error("message {message} of {length} bytes cannot grow by {by}")]
    CannotGrow {
        /// Which message.
        message: u64,
        /// Its length, in bytes.
        length: u64,
        /// How many bytes were to be appended.
        by: u64,
    },
    /// The body ended in the middle of a message.
    #[error("the body ended in message {message}, after {got} of its {length} bytes")]
    Ended {
        /// Which message.
        message: u64,
        /// How many of its bytes had come.
        got: u64,
        /// How many its prefix says, or 5 where the prefix itself is cut.
        length: u64,
    },
    /// A message is not well-formed protobuf as far as it has to be read.
    #[error("message {message} is no protobuf message: {fault}")]
    Wire {
        /// Which message.
        message: u64,
        /// What is wrong.
        fault: WireError,
    },
    /// A message names another id than the one that was asked for.
    #[error("message {message} names {id:?}, another id than the call began with")]
    AnotherId {
        /// Which message.
        message: u64,
        /// The id in it.
        id: String,
    },
    /// A message that has to be read is compressed, in a way that is not known here.
    #[error("message {message} is compressed in a way that is not known here; gzip and deflate are")]
    Unreadable {
        /// Which message.
        message: u64,
    },
    /// A message says that it is compressed, but the call names no compression.
    #[error("message {message} says that it is compressed, but grpc-encoding does not say how")]
    NoEncoding {
        /// Which message.
        message: u64,
    },
    /// A compressed message cannot be inflated.
    #[error("message {message} is not well-formed {encoding}: {fault}")]
    Inflate {
        /// Which message.
        message: u64,
        /// How it should be compressed.
        encoding: Encoding,
        /// What is wrong.
        fault: InflateError,
    },
    /// The budget had no room for inflating a message. Nothing is wrong with the message: later, there may be room.
    #[error("no room to inflate message {message}: {bytes} bytes more were refused")]
    NoRoom {
        /// Which message.
        message: u64,
        /// How many bytes were asked for.
        bytes: usize,
    },
}

/// What is wrong with a message as protobuf. Offsets are in bytes from its beginning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A number of more than ten bytes or 64 bits.
    #[error("the number that ends at byte {at} has more than 64 bits")]
    Varint {
        /// Where it ends.
        at: u64,
    },
    /// A tag with a field number that no field can have.
    #[error("the tag that ends at byte {at} has no possible field number")]
    Field {
        /// Where it ends.
        at: u64,
    },
    /// A tag with wire type 6 or 7.
    #[error("field {field} before byte {at} has wire type {wire}, which does not exist")]
    WireType {
        /// Where its tag ends.
        at: u64,
        /// Its number.
        field: u32,
        /// The wire type.
        wire: u8,
    },
    /// A field reaches beyond the message that it is in.
    #[error("the field at byte {at} reaches beyond the message around it")]
    Beyond {
        /// Where in it that is certain.
        at: u64,
    },
    /// The message ended within a field.
    #[error("it ends within a field, after {at} bytes")]
    Ended {
        /// Its length.
        at: u64,
    },
    /// The end of a group that has not begun, or not as the innermost.
    #[error("group {field} ends at byte {at} without having begun")]
    StrayEnd {
        /// Where its tag ends.
        at: u64,
        /// The group's field number.
        field: u32,
    },
    /// A message ended within a group.
    #[error("group {field} has no end before byte {at}")]
    Unclosed {
        /// Where the message around it ends.
        at: u64,
        /// The group's field number.
        field: u32,
    },
    /// Groups within groups, deeper than is followed.
    #[error("groups at byte {at} are nested deeper than {limit}")]
    TooDeep {
        /// Where the innermost begins.
        at: u64,
        /// How deep groups may be nested.
        limit: usize,
    },
    /// A field on the path is there with a wire type that no string and no message has.
    #[error("field {field} before byte {at} has wire type {wire}, but is on the way to the id: strings and messages have 2")]
    WrongType {
        /// Where its tag ends.
        at: u64,
        /// Its number.
        field: u32,
        /// The wire type.
        wire: u8,
    },
    /// The value at the path is longer than an id may be.
    #[error("the id at byte {at} has {length} bytes; at most {limit} are taken")]
    TooLong {
        /// Where it begins.
        at: u64,
        /// Its length, in bytes.
        length: u64,
        /// The largest length that is taken, in bytes.
        limit: usize,
    },
    /// A message that may name one id only names another one behind it.
    #[error("the id that ends at byte {at} is another one than before it")]
    Another {
        /// Where it ends.
        at: u64,
    },
    /// The value at the path is not UTF-8.
    #[error("the id that ends at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Where it ends.
        at: u64,
    },
}

/// What is wrong with compressed bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// Not the format that it should be.
    #[error("it does not begin as that")]
    Header,
    /// The compressed data make no sense.
    #[error("corrupt data after {after} inflated bytes")]
    Corrupt {
        /// How many bytes were inflated before.
        after: u64,
    },
    /// The checksum or length at the end does not fit what was inflated.
    #[error("the checksum does not fit")]
    Checksum,
    /// It ends too early.
    #[error("it ends too early, after {after} inflated bytes")]
    Ended {
        /// How many bytes were inflated before.
        after: u64,
    },
    /// Something follows after the end.
    #[error("something follows after its end")]
    Trailing,
    /// More gzip members than anybody needs.
    #[error("it has more than {limit} members")]
    Members {
        /// How many are taken.
        limit: u32,
    },
    /// More bytes than the limit.
    #[error("more than {limit} bytes once inflated")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The budget refused.
    #[error("no room for {bytes} bytes more")]
    NoRoom {
        /// How many bytes were asked for.
        bytes: usize,
    },
    /// What it inflates to is no protobuf message as far as it had to be read.
    #[error(transparent)]
    Wire(#[from] WireError),
}
