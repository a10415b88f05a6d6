# Starts a mail server and a web server, both with a certificate of an authority of their own, and ends them when standard
# input is closed, however the test process ends.
#   notify.sh SERVERS.PY
# Prints the folder in which everything is, then the ports of SMTP with STARTTLS, of SMTP with TLS from the first byte,
# of SMTP without TLS, and of HTTPS.
set -e
dir=$(mktemp -d /tmp/credit-notify-XXXXXX)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir mail web
for ca in ca foreign; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$ca" -keyout $ca.key -out $ca.crt 2>/dev/null
done
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout server.key -out server.csr 2>/dev/null
printf 'subjectAltName=IP:127.0.0.1' >ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt 2>/dev/null
echo "$dir"
# Debian's own Python, for which Debian's python3-aiosmtpd is
/usr/bin/python3 "$1" "$dir"
