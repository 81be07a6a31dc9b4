package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// Text is the text at path, from the top message down to a string field, as every parser of protobuf reads it: nested
// messages that occur several times are merged, and the last text counts. Nil where there is none or the message is
// malformed.
func Text(message []byte, path []protowire.Number) *string {
	var found *string
	for len(message) > 0 && len(path) > 0 {
		number, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return nil
		}
		message = message[length:]
		length = protowire.ConsumeFieldValue(number, kind, message)
		if length < 0 {
			return nil
		}
		if number == path[0] && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			if len(path) == 1 {
				text := string(value)
				found = &text
			} else if inner := Text(value, path[1:]); inner != nil {
				found = inner
			}
		}
		message = message[length:]
	}
	return found
}
