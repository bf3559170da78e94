package purge

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func failedResult(databases int, database func(i int) (name, cause string)) (r Result) {
	for i := range databases {
		name, cause := database(i)
		r.Databases = append(r.Databases, DatabaseResult{Database: name, Status: Failed, Error: cause, DeletedRows: 7})
	}
	return r
}

func TestAMessageStaysBelowEightKilobytes(t *testing.T) {
	long := strings.Repeat("é\x1b", 3_000)
	for name, r := range map[string]Result{
		"one cause":        failedResult(1000, func(i int) (string, string) { return fmt.Sprint("EdFi_Admin_", i), "no table" }),
		"a cause for each": failedResult(1000, func(i int) (string, string) { return fmt.Sprint("EdFi_Admin_", i), fmt.Sprint("cause ", i*7) }),
		"a long cause":     failedResult(1000, func(i int) (string, string) { return fmt.Sprint("EdFi_Admin_", i), long }),
		"long causes":      failedResult(1000, func(i int) (string, string) { return fmt.Sprint("EdFi_Admin_", i), long + fmt.Sprint(i*7) }),
		"long names":       failedResult(1000, func(i int) (string, string) { return long + fmt.Sprint(i), "no table" }),
		"one of all":       failedResult(1, func(int) (string, string) { return long, long }),
	} {
		message := r.Err().Error()
		if len(message) >= 8<<10 || !utf8.ValidString(message) || strings.Contains(message, "\x1b") ||
			!strings.HasPrefix(message, fmt.Sprintf("%s of %[1]s databases failed: ", Grouped(len(r.Databases)))) {
			t.Errorf("%s: %d bytes: %.200s", name, len(message), message)
		}
	}
}

// Whatever databases are called and fail of, the message is short text that can be shown,
// and its numbers are those of the result.
func FuzzAMessageStaysBelowEightKilobytes(f *testing.F) {
	for seed := range uint64(150) {
		f.Add(seed, uint16(seed*seed), uint16(seed%60), uint16(seed*7))
	}
	count := regexp.MustCompile(`\(([0-9,]+) rows deleted\)`)
	f.Fuzz(func(t *testing.T, seed uint64, databases, causes, long uint16) {
		random := rand.New(rand.NewPCG(seed, 1))
		text := func(most int) string {
			runes := make([]rune, 1+random.IntN(most))
			for i := range runes {
				sets := []rune{rune('a' + random.IntN(26)), rune(0x20 + random.IntN(0x60)), rune(0xc0 + random.IntN(0x300)), rune(0x4e00 + random.IntN(0x5000)), rune(0x1f300 + random.IntN(0x300)), rune(random.IntN(0x20)), 0x202e, 0xa0}
				runes[i] = sets[min(random.IntN(16), len(sets)-1)*random.IntN(2)]
			}
			return string(runes)
		}
		said := make([]string, int(causes)%1000+1)
		for i := range said {
			said[i] = text(int(long)%3_000 + 1)
		}
		var r Result
		var failed, rows int64
		for range int(databases)%3_000 + 1 {
			d := DatabaseResult{Database: text(130), Status: Failed, DeletedRows: random.Int64N(1 << random.IntN(50)), Error: said[random.IntN(len(said))]}
			switch random.IntN(5) {
			case 0:
				d.Status, d.Error = Complete, ""
			case 1:
				d.Error = "database " + d.Database + " does not exist: " + d.Error
			}
			if d.Status == Failed {
				failed, rows = failed+1, rows+d.DeletedRows
			}
			r.Databases = append(r.Databases, d)
		}
		err := r.Err()
		if failed == 0 {
			if err != nil {
				t.Error(err)
			}
			return
		}
		message := err.Error()
		if len(message) >= 8<<10 || !utf8.ValidString(message) || strings.ContainsFunc(message, func(r rune) bool { return !unicode.IsPrint(r) }) ||
			!strings.HasPrefix(message, fmt.Sprintf("%s of %s databases failed: ", Grouped(failed), Grouped(len(r.Databases)))) {
			t.Errorf("%d bytes: %.300q", len(message), message)
		}
		if regexp.MustCompile(`and [\d,]+ causes more$`).MatchString(message) || strings.Contains(strings.Join(said, ""), "rows deleted") {
			return
		}
		var told int64
		for _, m := range count.FindAllStringSubmatch(message, -1) {
			n, err := strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			told += n
		}
		if told != rows {
			t.Errorf("it tells of %d rows, and %d are deleted: %.2000q", told, rows, message)
		}
	})
}

func TestAMessageNamesAsManyDatabasesAsHaveRoom(t *testing.T) {
	cause := func(i int) (string, string) {
		return fmt.Sprint("EdFi_Admin_", i), fmt.Sprintf("database EdFi_Admin_%d does not exist", i)
	}
	message := failedResult(100, cause).Err().Error()
	for i := range 100 {
		if name := fmt.Sprintf("EdFi_Admin_%d (7 rows deleted)", i); !strings.Contains(message, name) {
			t.Errorf("no %s in %s", name, message)
		}
	}
	if strings.Count(message, "does not exist") != 1 {
		t.Errorf("causes that are alike are told more than once: %s", message)
	}
	message = failedResult(1000, cause).Err().Error()
	if !strings.Contains(message, "EdFi_Admin_150 (7 rows deleted)") || !strings.Contains(message, ", and ") {
		t.Errorf("%s", message)
	}
}

func TestNumbersAreGroupedByThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1: "-1", -123: "-123", -1234: "-1,234"} {
		if got := Grouped(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
