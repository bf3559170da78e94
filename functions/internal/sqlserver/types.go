package sqlserver

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/golang-sql/civil"
	mssql "github.com/microsoft/go-mssqldb"
)

// The types that a column of expirations may have. Another type has another notion of
// expired.
const (
	typeDatetime  = "datetime"
	typeDatetime2 = "datetime2" // not of ClientAccessTokens
)

// typeNumbers are theirs in sys.columns.
var typeNumbers = map[string]string{typeDatetime: "61", typeDatetime2: "42"}

// datetime returns the last instant up to t that the type can hold: 300 of them
// make a second, and their milliseconds end in 0, 3 and 7.
func datetime(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	switch digit := time.Duration(t.Nanosecond() / 1e6 % 10); {
	case digit >= 7:
		return t.Add((7 - digit) * time.Millisecond)
	case digit >= 3:
		return t.Add((3 - digit) * time.Millisecond)
	default:
		return t.Add(-digit * time.Millisecond)
	}
}

// next is the instant after t.
func next(t time.Time) time.Time { return datetime(t.Add(4 * time.Millisecond)) }

// tick is how far the instants of a datetime2 lie apart.
func (f facts) tick() time.Duration {
	if f.exact {
		return 100 * time.Nanosecond
	}
	return babelfishTick
}

// floor returns the last instant up to t that the column can hold.
func (f facts) floor(t time.Time) time.Time {
	if f.typeName == typeDatetime2 {
		return t.UTC().Truncate(f.tick())
	}
	return datetime(t)
}

// next returns the instant of the column after t.
func (f facts) next(t time.Time) time.Time {
	if f.typeName == typeDatetime2 {
		return f.floor(t.Add(f.tick()))
	}
	return next(t)
}

// first returns the first instant that the column can hold.
func (f facts) first() time.Time {
	if f.typeName == typeDatetime2 {
		return time.Date(1, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	return time.Date(1753, time.January, 1, 0, 0, 0, 0, time.UTC)
}

// instant returns t as a parameter of the column's type.
func (f facts) instant(t time.Time) any {
	if f.typeName == typeDatetime2 {
		return civil.DateTimeOf(t.UTC())
	}
	return mssql.DateTime1(t)
}

// fits tells whether expirations of the table may be of the column's type.
func (f facts) fits() bool {
	return f.typeName == typeDatetime || f.table.Local && f.typeName == typeDatetime2
}

// The types of keys whose ranges tell rows apart.
const typeGUID = "uniqueidentifier"

var typesOfNumbers = map[string][2]int64{"int": {math.MinInt32, math.MaxInt32}, "bigint": {math.MinInt64, math.MaxInt64}}

// keyed tells whether ranges of the key tell rows apart.
func (f facts) keyed() bool { return f.keyType == typeGUID || f.numbered() }

// numbered tells whether keys are numbers.
func (f facts) numbered() bool {
	_, numbers := typesOfNumbers[f.keyType]
	return numbers
}

// key is one of a table.
type key struct {
	guid     mssql.UniqueIdentifier
	number   int64
	numbered bool
}

// Scan implements sql.Scanner.
func (k *key) Scan(value any) error {
	if number, ok := value.(int64); ok {
		*k = key{number: number, numbered: true}
		return nil
	}
	*k = key{}
	return k.guid.Scan(value)
}

// value returns the key as a parameter.
func (k key) value() any {
	if k.numbered {
		return k.number
	}
	return k.guid
}

// firstKey and lastKey return the first and the last of all keys.
func (f facts) firstKey() key {
	return key{number: typesOfNumbers[f.keyType][0], numbered: f.numbered()}
}

func (f facts) lastKey() key {
	if f.numbered() {
		return key{number: typesOfNumbers[f.keyType][1], numbered: true}
	}
	return key{guid: mssql.UniqueIdentifier(slices.Repeat([]byte{0xff}, 16))}
}

// keyRange is the keys of a table: for numbers, those that there are.
type keyRange struct{ first, last key }

// at returns the key at so many parts of all. The last six bytes of a GUID are what SQL
// Server orders them by ("Comparing GUID and uniqueidentifier values"), its first ones
// what PostgreSQL does.
func (r keyRange) at(part, parts int) (k key) {
	if r.first.numbered {
		step := (uint64(r.last.number)-uint64(r.first.number))/uint64(parts) + 1
		return key{number: int64(uint64(r.first.number) + uint64(part)*step), numbered: true}
	}
	var place [8]byte
	binary.BigEndian.PutUint64(place[:], uint64(part)*(1<<48/uint64(parts)))
	copy(k.guid[:6], place[2:])
	copy(k.guid[10:], place[2:])
	return k
}
