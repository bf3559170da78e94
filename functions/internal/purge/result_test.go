package purge

import (
	"fmt"
	"strings"
	"testing"
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
			!strings.HasPrefix(message, fmt.Sprintf("%d of %[1]d databases failed: ", len(r.Databases))) {
			t.Errorf("%s: %d bytes: %.200s", name, len(message), message)
		}
	}
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
