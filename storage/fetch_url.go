package storage

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// urlSizeMax bounds a client's URL, in bytes: presigned URLs with session tokens reach 2,500.
const urlSizeMax = 4096

// CheckURL parses a client's URL and refuses, with ErrBadURL and words for the client, whatever is wrong without
// looking at the network: the scheme must be http or https, the host present and unambiguous, user and password
// absent. Whether the address may be reached is decided by Fetch when it connects, because a name can change.
func (f *Fetcher) CheckURL(raw string) (*url.URL, error) {
	if raw == "" {
		return nil, badURL("is empty")
	}
	if len(raw) > urlSizeMax {
		return nil, badURL(fmt.Sprintf("is longer than %d characters", urlSizeMax))
	}
	if !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		return nil, badURL("holds spaces, control characters or backslashes")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, badURL("cannot be read")
	}
	return u, checkParts(u)
}

// checkParts is what every hop is held to, redirects included.
func checkParts(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return badURL("must start with http:// or https://")
	case u.Opaque != "" || u.Hostname() == "":
		return badURL("names no host")
	case u.User != nil:
		return badURL("must not carry a user name or password")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return badURL("has an impossible port")
		}
	}
	return checkHost(u.Hostname())
}

// checkHost refuses names that one resolver reads as a name and another as an address, such as 127.1 or 0x7f000001.
func checkHost(host string) error {
	if len(host) > 253 {
		return badURL("has a host name longer than 253 characters")
	}
	if address, err := netip.ParseAddr(host); err == nil {
		if address.Zone() != "" {
			return badURL("has an address with a zone")
		}
		return nil
	}
	if strings.ContainsAny(host, ":%[]<>^|\"'`{}*,;!$&()+=~@#?/") {
		return badURL("has characters that no host name has")
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 {
			return badURL("has a host name with an empty or overlong part")
		}
	}
	if last := labels[len(labels)-1]; numeric(last) {
		return badURL("has a number where the host name ends, and is no plain IPv4 address")
	}
	return nil
}

// numeric is the rule of the WHATWG URL standard: a name that ends in a number is an address, in some notation.
func numeric(label string) bool {
	if rest, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

func badURL(what string) error {
	return &fetchError{kind: ErrBadURL, message: "The URL " + what + ".", err: errors.New(what)}
}
