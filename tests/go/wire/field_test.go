package wire

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

func join(pieces ...[]byte) []byte {
	var all []byte
	for _, piece := range pieces {
		all = append(all, piece...)
	}
	return all
}

func TestTheLastTextCountsAndNestedMessagesAreMerged(t *testing.T) {
	number := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7)
	for name, given := range map[string]struct {
		message []byte
		path    []protowire.Number
		want    string
	}{
		"absent":            {join(field(2, []byte("a"))), []protowire.Number{1}, "-"},
		"one":               {join(field(1, []byte("a"))), []protowire.Number{1}, "a"},
		"two":               {join(field(1, []byte("a")), field(1, []byte("b"))), []protowire.Number{1}, "b"},
		"another wire type": {number, []protowire.Number{1}, "-"},
		"nested":            {field(3, field(1, []byte("a"))), []protowire.Number{3, 1}, "a"},
		"merged":            {join(field(3, field(1, []byte("a"))), field(3, field(2, []byte("b")))), []protowire.Number{3, 1}, "a"},
		"cut":               {[]byte{0x0a, 5, 'a'}, []protowire.Number{1}, "-"},
	} {
		got := "-"
		if found := Text(given.message, given.path); found != nil {
			got = *found
		}
		if got != given.want {
			t.Errorf("%s: %q instead of %q", name, got, given.want)
		}
	}
}
